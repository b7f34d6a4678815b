# What a user gets: the program, the library with its headers and CMake package, the bundled model.
include(CMakePackageConfigHelpers)
file(GLOB app_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/apps/*.cpp)
if(NOT EXISTS ${PROJECT_SOURCE_DIR}/src/text/chat_template.cpp)
  return()
endif()
add_executable(glimpse_program ${app_sources})
set_target_properties(glimpse_program PROPERTIES OUTPUT_NAME glimpse)
target_link_libraries(glimpse_program PRIVATE glimpse_server CLI11::CLI11 PkgConfig::EDIT)
target_compile_definitions(glimpse_program PRIVATE GLIMPSE_VERSION="${PROJECT_VERSION}")
install(TARGETS glimpse_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# One shared library of all layers below the server: a user links glimpse::glimpse and needs none
# of our dependencies' headers. The layers that define the public functions are taken whole.
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/library.cpp CONTENT "// All code is in the layers.\n")
add_library(glimpse SHARED ${PROJECT_BINARY_DIR}/library.cpp)
target_link_libraries(glimpse PRIVATE
  $<LINK_LIBRARY:WHOLE_ARCHIVE,glimpse_runtime> $<LINK_LIBRARY:WHOLE_ARCHIVE,glimpse_model>)
set_target_properties(glimpse PROPERTIES VERSION ${PROJECT_VERSION}
                      LINK_LIBRARY_OVERRIDE "WHOLE_ARCHIVE,glimpse_runtime,glimpse_model"
                      SOVERSION ${PROJECT_VERSION_MAJOR})
target_include_directories(glimpse INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(glimpse INTERFACE cxx_std_20)
install(TARGETS glimpse EXPORT glimpse_targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/glimpse DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT glimpse_targets FILE glimpse-config.cmake NAMESPACE glimpse::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/glimpse)
write_basic_package_version_file(glimpse-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/glimpse-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/glimpse)
install(DIRECTORY models/demo DESTINATION ${CMAKE_INSTALL_DATADIR}/glimpse/models)
install(FILES examples/caption_image.cpp examples/CMakeLists.txt
        DESTINATION ${CMAKE_INSTALL_DATADIR}/glimpse/examples)
