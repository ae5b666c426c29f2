//! Tells bpf-linker to let LLVM expand fills as well as copies: by default it keeps copies in order by a pass that
//! turns every fill, of three bytes of padding too, into a call of a loop over bytes.

fn main() {
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    println!("cargo::rerun-if-changed=build.rs");
}
