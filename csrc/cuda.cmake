# Adds the CUDA kernels to `_native`, or sets `without_cuda` to why it cannot.
include(CheckLanguage)

find_program(nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT nvcc)
  set(without_cuda "no nvcc was found")
  return()
endif()

# The host compiler of all other code, unless another is named.
if(NOT DEFINED ENV{CUDAHOSTCXX})
  set(ENV{CUDAHOSTCXX} "${CMAKE_CXX_COMPILER}")
endif()
if(NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} "${nvcc}")
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  set(without_cuda "nvcc does not work with $ENV{CUDAHOSTCXX} (CUDAHOSTCXX can name another)")
  return()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)  # kernel parameters of 32 KB
  set(without_cuda "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.1")
  return()
endif()
set(without_cuda "")
drop_fast_math(CMAKE_CUDA_FLAGS CMAKE_CUDA_FLAGS_RELEASE)

set(architectures ${RAGRAD_CUDA_ARCHITECTURES})
if(NOT architectures)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
  foreach(sm 80 86 89 90 100 120)
    if(known MATCHES "compute_${sm}\n")
      list(APPEND architectures ${sm}-real)
      set(newest ${sm})
    endif()
  endforeach()
  list(APPEND architectures ${newest}-virtual)  # PTX, for what comes after it
endif()

set(cuda_flags --threads=0 -Xcompiler=-Wall,-Wextra)
if(RAGRAD_WERROR)
  list(APPEND cuda_flags -Werror=all-warnings -Xcompiler=-Werror)
endif()
target_sources(_native PRIVATE csrc/cuda.cu)
target_compile_options(_native PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
set_target_properties(_native PROPERTIES
  CUDA_ARCHITECTURES "${architectures}" CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
  CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
