//! OCI images: references, registry protocol, layers merged to one tree.
