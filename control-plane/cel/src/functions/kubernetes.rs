//! What Kubernetes adds: quantities, addresses, ranges of addresses, URLs.

use std::cmp::Ordering;
use std::net::IpAddr;

use control_plane_quota::Quantity;
use ipnetwork::IpNetwork;

use super::{Function, member, no_overload, plain};
use crate::eval::{Result, failed};
use crate::value::Value;

pub const ALL: &[Function] = &[
    plain("quantity", &[1], |v| match Quantity::parse(text(v, 0)?) {
        Some(quantity) => Ok(Value::Quantity(quantity)),
        None => failed(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    }),
    plain("isQuantity", &[1], |v| {
        Ok(Value::Bool(Quantity::parse(text(v, 0)?).is_some()))
    }),
    member("sign", &[0], |v| {
        let quantity = quantity(v, 0)?;
        Ok(Value::Int(if quantity.is_zero() {
            0
        } else if quantity.is_negative() {
            -1
        } else {
            1
        }))
    }),
    member("isInteger", &[0], |v| {
        Ok(Value::Bool(quantity(v, 0)?.as_integer().is_some()))
    }),
    member("asInteger", &[0], |v| match quantity(v, 0)?.as_integer() {
        Some(number) => Ok(Value::Int(number)),
        None => failed("cannot convert value to integer"),
    }),
    member("asApproximateFloat", &[0], |v| {
        Ok(Value::Double(quantity(v, 0)?.as_f64()))
    }),
    member("add", &[1], |v| {
        Ok(Value::Quantity(quantity(v, 0)?.plus(operand(v)?)))
    }),
    member("sub", &[1], |v| {
        Ok(Value::Quantity(quantity(v, 0)?.minus(operand(v)?)))
    }),
    member("isGreaterThan", &[1], |v| {
        Ok(Value::Bool(quantity(v, 0)? > quantity(v, 1)?))
    }),
    member("isLessThan", &[1], |v| {
        Ok(Value::Bool(quantity(v, 0)? < quantity(v, 1)?))
    }),
    member("compareTo", &[1], |v| {
        Ok(Value::Int(match quantity(v, 0)?.cmp(&quantity(v, 1)?) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }))
    }),
    plain("ip", &[1], |v| address(text(v, 0)?).map(Value::Ip)),
    plain("isIP", &[1], |v| {
        Ok(Value::Bool(address(text(v, 0)?).is_ok()))
    }),
    plain("ip.isCanonical", &[1], |v| {
        let given = text(v, 0)?;
        Ok(Value::Bool(address(given)?.to_string() == given))
    }),
    member("family", &[0], |v| {
        Ok(Value::Int(if ip(v, 0)?.is_ipv4() { 4 } else { 6 }))
    }),
    member("isUnspecified", &[0], |v| {
        Ok(Value::Bool(ip(v, 0)?.is_unspecified()))
    }),
    member("isLoopback", &[0], |v| {
        Ok(Value::Bool(ip(v, 0)?.is_loopback()))
    }),
    member("isLinkLocalMulticast", &[0], |v| {
        Ok(Value::Bool(match ip(v, 0)? {
            IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
            IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
        }))
    }),
    member("isLinkLocalUnicast", &[0], |v| {
        Ok(Value::Bool(is_link_local(ip(v, 0)?)))
    }),
    member("isGlobalUnicast", &[0], |v| {
        let ip = ip(v, 0)?;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let none =
            ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip);
        Ok(Value::Bool(!none && !broadcast))
    }),
    plain("cidr", &[1], |v| range(text(v, 0)?).map(Value::Cidr)),
    plain("isCIDR", &[1], |v| {
        Ok(Value::Bool(range(text(v, 0)?).is_ok()))
    }),
    member("containsIP", &[1], |v| {
        let inner = match &v[1] {
            Value::String(text) => address(text)?,
            _ => ip(v, 1)?,
        };
        Ok(Value::Bool(cidr(v, 0)?.contains(inner)))
    }),
    member("containsCIDR", &[1], |v| {
        let (outer, inner) = (
            cidr(v, 0)?,
            match &v[1] {
                Value::String(text) => range(text)?,
                _ => cidr(v, 1)?,
            },
        );
        Ok(Value::Bool(
            outer.contains(inner.ip()) && outer.prefix() <= inner.prefix(),
        ))
    }),
    member("ip", &[0], |v| Ok(Value::Ip(cidr(v, 0)?.ip()))),
    member("prefixLength", &[0], |v| {
        Ok(Value::Int(cidr(v, 0)?.prefix().into()))
    }),
    member("masked", &[0], |v| {
        let range = cidr(v, 0)?;
        match IpNetwork::new(range.network(), range.prefix()) {
            Ok(masked) => Ok(Value::Cidr(masked)),
            Err(error) => failed(error.to_string()),
        }
    }),
    plain("isURL", &[1], |v| {
        Ok(Value::Bool(split(text(v, 0)?).is_some()))
    }),
    plain("url", &[1], |v| match split(text(v, 0)?) {
        Some(_) => Ok(Value::Url(text(v, 0)?.into())),
        None => failed("URL parse error during conversion from string"),
    }),
    member("getScheme", &[0], |v| url(v, |parts| parts.scheme)),
    member("getHost", &[0], |v| url(v, |parts| parts.host)),
    member("getHostname", &[0], |v| {
        url(v, |parts| {
            let bare = parts
                .host
                .rsplit_once(':')
                .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            bare.map_or(parts.host, |(host, _)| host)
                .trim_matches(['[', ']'])
        })
    }),
    member("getPort", &[0], |v| {
        url(v, |parts| {
            let port = parts.host.rsplit_once(':').map(|(_, port)| port);
            port.filter(|port| port.bytes().all(|b| b.is_ascii_digit()))
                .unwrap_or_default()
        })
    }),
    member("getEscapedPath", &[0], |v| url(v, |parts| parts.path)),
];

fn text(values: &[Value], at: usize) -> Result<&str> {
    match values.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => no_overload(),
    }
}

fn quantity(values: &[Value], at: usize) -> Result<Quantity> {
    match values.get(at) {
        Some(Value::Quantity(quantity)) => Ok(*quantity),
        _ => no_overload(),
    }
}

/// A quantity, or a number of whole things.
fn operand(values: &[Value]) -> Result<Quantity> {
    match values.get(1) {
        Some(Value::Int(number)) => {
            Quantity::parse(&number.to_string()).map_or_else(no_overload, Ok)
        }
        _ => quantity(values, 1),
    }
}

fn ip(values: &[Value], at: usize) -> Result<IpAddr> {
    match values.get(at) {
        Some(Value::Ip(address)) => Ok(*address),
        _ => no_overload(),
    }
}

fn cidr(values: &[Value], at: usize) -> Result<IpNetwork> {
    match values.get(at) {
        Some(Value::Cidr(range)) => Ok(*range),
        _ => no_overload(),
    }
}

fn address(text: &str) -> Result<IpAddr> {
    let found = text.parse::<IpAddr>().ok();
    // Addresses of IPv4 within IPv6 are refused, as by Kubernetes.
    let found = found.filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()));
    found.map_or_else(
        || {
            failed(format!(
                "IP Address {text:?} parse error during conversion from string"
            ))
        },
        Ok,
    )
}

fn range(text: &str) -> Result<IpNetwork> {
    let found = text.contains('/').then(|| text.parse().ok()).flatten();
    found.map_or_else(
        || failed("network address parse error during conversion from string"),
        Ok,
    )
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The parts of an absolute URL, or of an absolute path.
struct Parts<'a> {
    scheme: &'a str,
    host: &'a str,
    path: &'a str,
}

fn split(url: &str) -> Option<Parts<'_>> {
    if url.contains(|c: char| c.is_control() || c == ' ') {
        return None;
    }
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    if bare.starts_with('/') {
        return Some(Parts {
            scheme: "",
            host: "",
            path: bare,
        });
    }
    let (scheme, rest) = bare.split_once("://")?;
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    named.then_some(Parts { scheme, host, path })
}

fn url(values: &[Value], part: for<'a> fn(Parts<'a>) -> &'a str) -> Result<Value> {
    match &values[0] {
        Value::Url(url) => Ok(Value::text(split(url).map_or("", part))),
        _ => no_overload(),
    }
}
