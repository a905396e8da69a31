// Every processor runs portable C++.
namespace qxc::portable {

bool is_supported() { return true; }

}  // namespace qxc::portable
