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

# For workers on GPUs also `cuda`: the CUDA half of LibTorch, NCCL and the CUDA runtime. No device code of our own.
if(RINGSERVE_CUDA_CRT_DIR)
  set(nvidia_dir ${RINGSERVE_TORCH_DIR}/nvidia)
  foreach(file ${torch_dir}/lib/libtorch_cuda.so ${nvidia_dir}/nccl/include/nccl.h
      ${RINGSERVE_CUDA_CRT_DIR}/nvidia/cu13/include/crt/host_defines.h)
    if(NOT EXISTS ${file})
      message(FATAL_ERROR "RINGSERVE_CUDA_CRT_DIR asks for CUDA, and there is no ${file}: see ./dev setup --cuda")
    endif()
  endforeach()
  add_library(cuda INTERFACE)
  target_include_directories(cuda SYSTEM INTERFACE ${nvidia_dir}/cu13/include ${nvidia_dir}/nccl/include
    ${RINGSERVE_CUDA_CRT_DIR}/nvidia/cu13/include)
  # LibTorch finds its CUDA kernels by what libtorch_cuda.so registers when it is loaded: no symbol asks for it.
  target_link_libraries(cuda INTERFACE -Wl,--push-state,--no-as-needed ${torch_dir}/lib/libtorch_cuda.so
    ${torch_dir}/lib/libc10_cuda.so -Wl,--pop-state ${nvidia_dir}/cu13/lib/libcudart.so.13
    ${nvidia_dir}/nccl/lib/libnccl.so.2)
  foreach(folder cudnn nvshmem cusparselt nccl)
    target_link_options(cuda INTERFACE -Wl,-rpath-link,${nvidia_dir}/${folder}/lib)
  endforeach()
  target_link_options(cuda INTERFACE -Wl,-rpath,${nvidia_dir}/cu13/lib -Wl,-rpath,${nvidia_dir}/nccl/lib)
endif()
