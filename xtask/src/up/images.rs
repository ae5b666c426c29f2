//! The two images of the example, made here: no registry is asked.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::place::{self, Place};
use crate::command::Run;
use crate::workspace;

struct Image {
    name: &'static str,
    entrypoint: &'static str,
}

const IMAGES: &[Image] = &[
    Image {
        name: "fairlead/hello:latest",
        entrypoint: r#"["/hello"]"#,
    },
    Image {
        name: "fairlead/pause:latest",
        entrypoint: r#"["/hello","pause"]"#,
    },
];

/// Compiles the example's program to a static binary and packs the images' one layer.
pub fn build() -> Result<()> {
    let binary = place::hello_binary();
    // Without any library a container needs nothing but this file.
    Run::new("rustc")
        .args([
            "--edition=2024",
            "--crate-name=hello",
            "-O",
            "-Ctarget-feature=+crt-static",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-o",
        ])
        .args([
            &binary,
            &workspace::root().join("deploy/examples/hello/main.rs"),
        ])
        .text()?;
    let folder = binary.parent().context("the binary lies in a folder")?;
    Run::new("tar")
        .args::<PathBuf>([
            "-C".into(),
            folder.into(),
            "-cf".into(),
            layer(),
            "hello".into(),
        ])
        .text()
        .map(drop)
}

/// Imports the images on one node.
pub fn import(place: &Place) -> Result<()> {
    for image in IMAGES {
        docker(place)
            .args(["import", "--change"])
            .args([format!("ENTRYPOINT {}", image.entrypoint)])
            .args::<PathBuf>([layer()])
            .args([image.name])
            .text()?;
    }
    Ok(())
}

/// True once the node's daemon answers.
pub fn docker_answers(place: &Place) -> bool {
    place.docker_socket().exists() && docker(place).args(["version"]).succeeds()
}

fn docker(place: &Place) -> Run {
    Run::new("docker").args([format!("--host=unix://{}", place.docker_socket().display())])
}

fn layer() -> PathBuf {
    place::folder().join("hello.tar")
}
