//! The rows of networking, discovery, coordination and events.

use super::{Kind, ROW, STATUS, SelectableField, fields};
use crate::{strategies, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        prefix: "/registry/leases/",
        schema: "io.k8s.api.coordination.v1.Lease",
        printer: table::LEASE,
        strategy: strategies::LEASE,
        ..ROW
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        prefix: "/registry/endpointslices/",
        schema: "io.k8s.api.discovery.v1.EndpointSlice",
        printer: table::ENDPOINT_SLICE,
        strategy: strategies::ENDPOINT_SLICE,
        ..ROW
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        prefix: "/registry/events/",
        schema: "io.k8s.api.events.v1.Event",
        conversion: Some(strategies::NEW_EVENT_CONVERSION),
        fields: fields!("reason" => "/reason", "regarding.kind" => "/regarding/kind", "regarding.namespace" => "/regarding/namespace", "regarding.name" => "/regarding/name", "regarding.uid" => "/regarding/uid", "regarding.apiVersion" => "/regarding/apiVersion", "reportingController" => "/reportingController", "type" => "/type"),
        printer: table::NEW_EVENT,
        strategy: strategies::NEW_EVENT,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        prefix: "/registry/ingressclasses/",
        schema: "io.k8s.api.networking.v1.IngressClass",
        printer: table::INGRESS_CLASS,
        strategy: strategies::INGRESS_CLASS,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        prefix: "/registry/ingress/",
        schema: "io.k8s.api.networking.v1.Ingress",
        subresources: STATUS,
        printer: table::INGRESS,
        strategy: strategies::INGRESS,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        namespaced: false,
        prefix: "/registry/ipaddresses/",
        schema: "io.k8s.api.networking.v1.IPAddress",
        printer: table::IP_ADDRESS,
        strategy: strategies::CHECKED,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        prefix: "/registry/networkpolicies/",
        schema: "io.k8s.api.networking.v1.NetworkPolicy",
        printer: table::NETWORK_POLICY,
        strategy: strategies::NETWORK_POLICY,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        prefix: "/registry/servicecidrs/",
        schema: "io.k8s.api.networking.v1.ServiceCIDR",
        subresources: STATUS,
        printer: table::SERVICE_CIDR,
        strategy: strategies::CHECKED,
        ..ROW
    },
];
