//! The CNI plugin's other side: its socket, and its place in the runtime's directories.

use std::sync::Arc;

use anyhow::Context;
use node_agent_cni::{Attachments, PLUGIN};
use node_agent_host::PodWiring;

use crate::agent::Tasks;
use crate::flags::Flags;
use crate::readiness::Readiness;

/// Serves the plugin for ever, and then installs it: a runtime that finds it finds an agent too.
///
/// # Errors
///
/// When the plugin does not lie beside the agent, or cannot be installed.
pub fn start(
    flags: &Flags,
    wiring: PodWiring,
    readiness: &Arc<Readiness>,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let readiness = readiness.clone();
    let attachments = Arc::new(Attachments::new(wiring, move || readiness.not_ready()));
    let socket = flags.cni_socket.clone();
    tasks.spawn(async move {
        let served = node_agent_cni::serve(&socket, attachments).await;
        let served = served.with_context(|| format!("--cni-socket {}", socket.display()));
        ("CNI socket", served)
    });
    let own = std::env::current_exe().context("looking for the agent's own file")?;
    let plugin = own.with_file_name(PLUGIN);
    node_agent_cni::install(
        &plugin,
        &flags.cni_bin_dir,
        &flags.cni_conf_dir,
        &flags.cni_socket,
    )
    .context("installing the CNI plugin; --cni=false where it is not wanted")
}
