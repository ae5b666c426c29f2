//! The Python client, by a script of what people do with it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests_kubectl::Server;
use tokio::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python.py");
const PARTS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_does_what_people_do_with_it() -> Result<()> {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python");
    ensure!(
        packages.join("kubernetes").is_dir(),
        "there is no Python client in {}: run `cargo xtask setup`",
        packages.display()
    );
    let server = Server::start().await?;
    let output = Command::new("python3")
        .args([SCRIPT, &server.url()])
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot start python3")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said.lines().count(), PARTS, "{said}");
    println!("{said}");
    Ok(())
}
