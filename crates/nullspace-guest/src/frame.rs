//! Frames: a fixed header, then at most [`MAX_PAYLOAD`] bytes.
