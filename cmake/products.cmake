# What a user gets: the program and the library.
file(GLOB app_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/apps/*.cpp)
if(app_sources)
  add_executable(glimpse_program ${app_sources})
  set_target_properties(glimpse_program PROPERTIES OUTPUT_NAME glimpse)
  target_link_libraries(glimpse_program PRIVATE glimpse_server CLI11::CLI11)
  install(TARGETS glimpse_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
