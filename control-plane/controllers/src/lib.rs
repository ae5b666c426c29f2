//! control-plane-controllers
