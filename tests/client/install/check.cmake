# Installs the client components of BUILD into a folder of its own, builds the project beside this file against them
# with COMPILER, and runs it: cmake -D BUILD=... -D WORK=... -D COMPILER=... [-D TORCH=...] -P check.cmake
file(REMOVE_RECURSE ${WORK})
function(must_run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
must_run(${CMAKE_COMMAND} --install ${BUILD} --component client --prefix ${WORK}/prefix)
if(TORCH)
  must_run(${CMAKE_COMMAND} --install ${BUILD} --component client-torch --prefix ${WORK}/prefix)
endif()
must_run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/build -G Ninja -D CMAKE_BUILD_TYPE=Release
  -D CMAKE_CXX_COMPILER=${COMPILER} -D CMAKE_PREFIX_PATH=${WORK}/prefix -D TORCH=${TORCH})
must_run(${CMAKE_COMMAND} --build ${WORK}/build)
must_run(${WORK}/build/consumer)
if(TORCH)
  must_run(${WORK}/build/torch_consumer)
endif()
