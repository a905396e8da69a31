set(processors "aarch64|arm64")
set(flags -march=armv8.2-a+dotprod)
