//! control-plane-apiserver
