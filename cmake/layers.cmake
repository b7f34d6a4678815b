# One static library per folder of src/, with warnings as errors.
add_library(glimpse_settings INTERFACE)
target_include_directories(glimpse_settings INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
target_compile_options(glimpse_settings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers -Werror>)
if(GLIMPSE_SANITIZE)
  target_compile_options(glimpse_settings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${GLIMPSE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all>)
  target_link_options(glimpse_settings INTERFACE -fsanitize=${GLIMPSE_SANITIZE})
endif()
# Builds with sanitizers compile several files as one, which halves their time. A local name then
# may hide a constant of another file; builds of single files tell of those that hide one of theirs.
if(CMAKE_UNITY_BUILD)
  target_compile_options(glimpse_settings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-shadow>)
endif()

function(glimpse_layer name)
  cmake_parse_arguments(LAYER "" "" "DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cpp)
  list(REMOVE_ITEM sources ${PROJECT_SOURCE_DIR}/src/backend/create.cpp)
  if(NOT sources)
    add_library(glimpse_${name} INTERFACE)
    target_link_libraries(glimpse_${name} INTERFACE glimpse_settings ${LAYER_DEPENDS})
    return()
  endif()
  foreach(source ${sources})  # these cannot share a unit with others: Highway's, and those with pragmas
    file(STRINGS ${source} alone REGEX "define HWY_TARGET_INCLUDE|^#pragma GCC" LIMIT_COUNT 1)
    if(alone)
      set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
  add_library(glimpse_${name} STATIC ${sources})
  target_link_libraries(glimpse_${name} PUBLIC glimpse_settings ${LAYER_DEPENDS})
endfunction()
