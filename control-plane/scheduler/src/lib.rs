//! control-plane-scheduler
