//! control-plane-store
