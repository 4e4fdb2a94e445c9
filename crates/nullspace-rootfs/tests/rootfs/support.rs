//! How `nullspace-oci`'s own tests describe and make layers.

// Each of the two uses what it needs.
#![allow(dead_code)]

#[path = "../../../nullspace-oci/tests/suite/support/case.rs"]
pub(crate) mod case;
#[path = "../../../nullspace-oci/tests/suite/support/stack.rs"]
pub(crate) mod stack;
#[path = "../../../nullspace-oci/tests/suite/support/tar.rs"]
pub(crate) mod tar;
