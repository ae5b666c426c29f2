//! Giving the host's network back: `fairlead0` and all routes that lead to it.

use ipnetwork::IpNetwork;

use rtnetlink::packet_route::route::RouteHeader;

use crate::{HOST_DEVICE, Network, NetworkError, service_routes::TABLE as SERVICE_TABLE};

/// What went with the host's interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RemovedHostDevice {
    /// Prefixes of our routes: those to pods and services.
    pub routes: Vec<IpNetwork>,
}

impl Network {
    /// What [`Network::remove_host_device`] would remove; `None` if there is no such interface.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotOurs`] if something else has the name, or a failed netlink request.
    pub async fn host_device(&self) -> Result<Option<RemovedHostDevice>, NetworkError> {
        let Some(link) = self.link(HOST_DEVICE).await? else {
            return Ok(None);
        };
        if !link.is_veth {
            return Err(NetworkError::NotOurs {
                name: HOST_DEVICE.to_owned(),
                mac: link.mac.unwrap_or_default(),
            });
        }
        let mut routes = Vec::new();
        for table in [RouteHeader::RT_TABLE_MAIN.into(), SERVICE_TABLE] {
            let found = self.routes_of(link.index, table).await?;
            routes.extend(found.into_iter().map(|(route, _)| route.prefix));
        }
        Ok(Some(RemovedHostDevice { routes }))
    }

    /// Removes `fairlead0` with its other side, and the kernel's VXLAN device if it was needed; the kernel removes the
    /// routes with them.
    ///
    /// # Errors
    ///
    /// As for [`Network::host_device`].
    pub async fn remove_host_device(&self) -> Result<Option<RemovedHostDevice>, NetworkError> {
        let removed = self.host_device().await?;
        self.remove_vxlan_device().await?;
        if removed.is_some()
            && let Some(link) = self.link(HOST_DEVICE).await?
        {
            self.delete_link(link.index).await?;
        }
        Ok(removed)
    }
}
