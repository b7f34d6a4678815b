# Static runtime, libcuda loaded at run time: the program starts on machines without a driver.
set_target_properties(glimpse_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static
                      CUDA_SEPARABLE_COMPILATION OFF)
find_package(CUDAToolkit REQUIRED)
target_include_directories(glimpse_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(glimpse_cuda PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
# The list that why_no_cuda() compares the card with.
string(REPLACE ";" "\;" architectures "${GLIMPSE_CUDA_ARCHITECTURES}")
set_property(SOURCE ${PROJECT_SOURCE_DIR}/src/cuda/driver.cpp APPEND PROPERTY
             COMPILE_DEFINITIONS "GLIMPSE_CUDA_ARCHITECTURES=\"${architectures}\"")
# -Xptxas -v: registers, shared memory and spills of each kernel; tools/check_kernels reads them.
target_compile_options(glimpse_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -Xptxas -v>)
