# The LibTorch wheel as the INTERFACE target `libtorch`. find_package(Torch) wants nvcc and may plant a
# second protobuf target, so the few libraries are named here.
set(torch_dir ${RINGSERVE_TORCH_DIR}/torch)
if(NOT EXISTS ${torch_dir}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "RINGSERVE_TORCH_DIR=${RINGSERVE_TORCH_DIR} holds no torch/lib/libtorch_cpu.so")
endif()
add_library(libtorch INTERFACE)
# -idirafter: the wheel carries its own google/protobuf and fmt, which must not shadow the system's.
target_compile_options(libtorch INTERFACE
  "SHELL:-idirafter \"${torch_dir}/include\"" "SHELL:-idirafter \"${torch_dir}/include/torch/csrc/api/include\"")
# Its own OpenMP, for sources that share its threads.
target_link_libraries(libtorch INTERFACE ${torch_dir}/lib/libtorch_cpu.so ${torch_dir}/lib/libc10.so
  ${torch_dir}/lib/libgomp.so.1)
target_link_options(libtorch INTERFACE
  -Wl,-rpath-link,${RINGSERVE_TORCH_DIR}/nvidia/cu13/lib -Wl,-rpath,${torch_dir}/lib)
