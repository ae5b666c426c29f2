//! Drawing text: YAML of its own signs, and bytes that are nearly HTTP.

use http::Method;
use proptest::prelude::*;
use proptest::sample::select;

use crate::draw::Drawn;

/// Text of YAML's own signs.
pub fn yaml() -> impl Strategy<Value = Drawn> {
    let piece = select(
        &[
            "a: ",
            "- ",
            "&x ",
            "*x",
            "? ",
            ": ",
            "!!binary ",
            "!!int ",
            "!<tag:x> ",
            "|\n",
            ">-\n",
            "\n",
            "  ",
            "\t",
            "{",
            "}",
            "[",
            "]",
            ",",
            "'",
            "\"",
            "#",
            "---\n",
            "...\n",
            "<<: *x\n",
            "%YAML 1.2\n",
            "~",
            "0x1F",
            "1e999",
            ".nan",
            "2026-01-01",
            "metadata: {name: y}\n",
            "kind: ConfigMap\n",
            "data: {a: b}\n",
            "\u{feff}",
            "\u{85}",
        ][..],
    );
    let text = proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat());
    (
        text,
        select(&["application/yaml", "application/apply-patch+yaml"][..]),
    )
        .prop_map(|(text, media)| {
            let (method, path) = match media {
                "application/yaml" => (Method::POST, "/api/v1/namespaces/default/configmaps"),
                _ => (
                    Method::PATCH,
                    "/api/v1/namespaces/default/configmaps/y?fieldManager=f",
                ),
            };
            Drawn {
                method,
                uri: path.to_owned(),
                headers: vec![("content-type", media.to_owned())],
                body: text.into_bytes(),
            }
        })
}

/// Bytes for a socket: no HTTP at all, or nearly.
pub fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        select(
            &[
                "GET ",
                "POST ",
                "/api/v1/pods",
                " HTTP/1.1\r\n",
                " HTTP/9.9\r\n",
                "host: x\r\n",
                "content-length: 5\r\n",
                "content-length: -1\r\n",
                "content-length: 99999999999999999999\r\n",
                "transfer-encoding: chunked\r\n",
                "\r\n",
                "5\r\nhello\r\n",
                "ffffffffffffffff\r\n",
                "0\r\n\r\n",
                "connection: upgrade\r\n",
                "upgrade: websocket\r\n",
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                "content-type: application/json\r\n",
                "{\"a\":",
                "\0",
            ][..]
        )
        .prop_map(|text| text.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}
