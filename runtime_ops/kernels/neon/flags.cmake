set(processors "aarch64|arm64")
set(flags "")
