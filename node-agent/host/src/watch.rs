//! Word from the kernel that something of the network changed: a reason to look, never the news itself.

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

use crate::NetworkError;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Tells of changes to links, addresses, routes and their rules in the namespace of the thread that made it.
#[derive(Debug)]
pub struct NetworkChanges(mpsc::Receiver<()>);

impl NetworkChanges {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Connect`] if the kernel gives no netlink socket.
    pub fn subscribe() -> Result<Self, NetworkError> {
        let (connection, _handle, mut messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(NetworkError::Connect)?;
        // Changes that come while one is not yet looked at are one.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(connection);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                match sender.try_send(()) {
                    Err(mpsc::error::TrySendError::Closed(())) => return,
                    Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Returns when something changed since the last call; false if no more word will come.
    pub async fn changed(&mut self) -> bool {
        self.0.recv().await.is_some()
    }
}
