set(processors ".*")
set(flags "")
