# What a user gets: the program and the library.
file(GLOB app_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/apps/*.cpp)
if(app_sources AND EXISTS ${PROJECT_SOURCE_DIR}/src/runtime/engine.cpp)
  add_executable(glimpse_program ${app_sources})
  set_target_properties(glimpse_program PROPERTIES OUTPUT_NAME glimpse)
  target_link_libraries(glimpse_program PRIVATE glimpse_server CLI11::CLI11 PkgConfig::EDIT)
  target_compile_definitions(glimpse_program PRIVATE GLIMPSE_VERSION="${PROJECT_VERSION}")
  install(TARGETS glimpse_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
