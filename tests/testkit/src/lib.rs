//! tests-testkit
