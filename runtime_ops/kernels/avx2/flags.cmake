set(processors "x86_64|AMD64")
set(flags -mavx2 -mfma -mf16c)
