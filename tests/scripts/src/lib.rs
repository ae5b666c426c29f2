//! tests-scripts
