//! tests-kubectl
