//! Whether a pod still has what it was wired with.

use std::{net::IpAddr, path::Path};

use rtnetlink::{IpVersion, packet_route::route::RouteMessage};

use crate::{
    Network, NetworkError, PodLinkSpec, in_namespace,
    netlink::{address_of, failed},
    pod_device_name,
    pod_link::are_joined,
    route::{output_interface, query},
};

impl Network {
    /// What of a pod's link is missing or different, in words; empty if all of `spec` is there.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Namespace`] if the pod's namespace cannot be entered, or a failed netlink request.
    pub async fn check_pod(
        &self,
        spec: &PodLinkSpec,
        netns: &Path,
    ) -> Result<Vec<String>, NetworkError> {
        let name = pod_device_name(&spec.uid);
        let Some(host) = self.link(&name).await? else {
            return Ok(vec![format!("the host's side {name} is missing")]);
        };
        let spec = spec.clone();
        in_namespace(netns, async move |pod: Network| {
            let Some(device) = pod.link(&spec.device).await? else {
                return Ok(vec![format!("interface {} is missing", spec.device)]);
            };
            let mut faults = Vec::new();
            if !are_joined(&host, &device, &spec.uid) {
                faults.push(format!("{} does not lead to {name}", spec.device));
            }
            let addresses = pod.addresses(device.index).await?;
            let addresses: Vec<IpAddr> = addresses.iter().filter_map(address_of).collect();
            for ip in &spec.ips {
                if !addresses.contains(ip) {
                    faults.push(format!("address {ip} is missing from {}", spec.device));
                }
                if !pod.has_default_route(device.index, ip.is_ipv4()).await? {
                    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                    faults.push(format!("the {family} default route is missing"));
                }
            }
            Ok(faults)
        })
        .await
    }

    async fn has_default_route(&self, index: u32, v4: bool) -> Result<bool, NetworkError> {
        let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
        let routes: Vec<RouteMessage> = self
            .list(|handle| handle.route().get(query(version)).execute())
            .await
            .map_err(failed("list the routes"))?;
        Ok(routes.iter().any(|route| {
            route.header.destination_prefix_length == 0 && output_interface(route) == Some(index)
        }))
    }
}
