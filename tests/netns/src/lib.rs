//! tests-netns
