set(processors "x86_64|AMD64")
set(flags -mavx2 -mfma -mf16c -mavxvnni)
if(QXC_TESTS)
  # AVX-512's encoding of the same instructions, which more machines have
  list(REMOVE_ITEM flags -mavxvnni)
  list(APPEND flags -mavx512vl -mavx512vnni -D__AVXVNNI__ -D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32)
  set_source_files_properties(${folder}/processor.cpp PROPERTIES COMPILE_DEFINITIONS QXC_AVX_VNNI_AS_AVX512)
endif()
