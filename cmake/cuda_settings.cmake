# Static runtime, libcuda loaded at run time: the program starts on machines without a driver.
set_target_properties(glimpse_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static
                      CUDA_SEPARABLE_COMPILATION OFF)
target_link_libraries(glimpse_cuda PRIVATE ${CMAKE_DL_LIBS})
# -Xptxas -v: registers, shared memory and spills of each kernel; tools/check_kernels reads them.
target_compile_options(glimpse_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -Xptxas -v>)
target_include_directories(glimpse_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
