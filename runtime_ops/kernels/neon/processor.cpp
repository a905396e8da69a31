// Every 64-bit Arm processor has NEON.
namespace qxc::neon {

bool is_supported() { return true; }

}  // namespace qxc::neon
