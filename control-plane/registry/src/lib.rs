//! control-plane-registry
