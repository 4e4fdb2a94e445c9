//! A filesystem tree written as an ext4 image, without root and without mounting.
