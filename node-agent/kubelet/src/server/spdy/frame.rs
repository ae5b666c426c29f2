//! Frames (SPDY/3.1, section 2.2): eight bytes that say what follows and how long it is.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{Headers, Packer, Unpacker};

const VERSION: u16 = 3;
const HEAD: usize = 8;
const FIN: u8 = 1;
/// The longest control frame, in bytes; kubectl's have less than a hundred.
const CONTROL_MAX: usize = 64 * 1024;
/// The top bit of a word that a stream's number leaves free.
const NUMBER: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// Bytes that are no SPDY: the connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of SPDY version {0}, where 3 was agreed on")]
    Version(u16),
    #[error("a control frame of {length} bytes; at most {CONTROL_MAX} are read")]
    TooLong { length: usize },
    #[error("a frame of type {0} that is too short")]
    TooShort(u16),
    #[error("a header block that cannot be unpacked")]
    Headers,
    #[error("a header block of more than {limit} bytes")]
    HeadersTooLong { limit: usize },
}

/// A frame as the peer sends it, as far as port-forwarding needs it.
#[derive(Debug, PartialEq)]
pub(crate) enum Frame {
    /// The peer opens a stream; with `fin` it sends nothing on it.
    Open {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// The peer wants to hear no more of a stream.
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    /// The peer opens no more streams.
    GoAway,
    /// Settings, windows and what else does not matter here.
    Other,
}

/// Reads the frames of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    unpacker: Unpacker,
    buffer: BytesMut,
}

/// Makes the frames of the other direction.
#[derive(Debug)]
pub(crate) struct Writer {
    packer: Packer,
}

impl Reader {
    pub fn new() -> Self {
        Self {
            unpacker: Unpacker::new(),
            buffer: BytesMut::new(),
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes have come.
    ///
    /// # Errors
    ///
    /// Bytes that are no SPDY.
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let [a, b, c, d, flags, lengths @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes([0, lengths[0], lengths[1], lengths[2]]))
            .unwrap_or(usize::MAX);
        let is_control = a & 0x80 != 0;
        if is_control {
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > CONTROL_MAX {
                return Err(FrameError::TooLong { length });
            }
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let body = self.buffer.split_to(length).freeze();
        let fin = flags & FIN != 0;
        if is_control {
            return self
                .control(u16::from_be_bytes([c, d]), fin, body)
                .map(Some);
        }
        let stream = u32::from_be_bytes([a, b, c, d]);
        Ok(Some(Frame::Data {
            stream,
            fin,
            bytes: body,
        }))
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, FrameError> {
        let short = |_| FrameError::TooShort(kind);
        Ok(match kind {
            SYN_STREAM => {
                let stream = body.try_get_u32().map_err(short)? & NUMBER;
                // The stream that it belongs to, its priority and its credential slot.
                body.try_get_u32().map_err(short)?;
                body.try_get_u16().map_err(short)?;
                let headers = self.unpacker.unpack(&body)?;
                Frame::Open {
                    stream,
                    fin,
                    headers,
                }
            }
            RST_STREAM => Frame::Reset {
                stream: body.try_get_u32().map_err(short)? & NUMBER,
            },
            PING => Frame::Ping {
                id: body.try_get_u32().map_err(short)?,
            },
            GOAWAY => Frame::GoAway,
            // HEADERS: what it packs is needed to unpack what follows.
            8 => {
                body.try_get_u32().map_err(short)?;
                self.unpacker.unpack(&body)?;
                Frame::Other
            }
            _ => Frame::Other,
        })
    }
}

impl Writer {
    /// # Errors
    ///
    /// If zlib cannot be set up.
    pub fn new() -> Result<Self, FrameError> {
        Ok(Self {
            packer: Packer::new()?,
        })
    }

    /// Takes a stream that the peer has opened.
    ///
    /// # Errors
    ///
    /// If zlib fails.
    pub fn reply(&mut self, stream: u32) -> Result<Bytes, FrameError> {
        let block = self.packer.pack(&[])?;
        let body = [&stream.to_be_bytes(), block.as_slice()].concat();
        Ok(control(SYN_REPLY, &body))
    }
}

/// Refuses a stream, or ends both of its sides at once; the status is one of section 2.6.3.
pub(crate) fn reset(stream: u32, status: u32) -> Bytes {
    control(
        RST_STREAM,
        &[stream.to_be_bytes(), status.to_be_bytes()].concat(),
    )
}

/// The answer to a ping is the same frame.
pub(crate) fn ping(id: u32) -> Bytes {
    control(PING, &id.to_be_bytes())
}

/// Data of a stream, less than 16 MiB; with `fin` the last.
pub(crate) fn data(stream: u32, fin: bool, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + bytes.len());
    frame.put_u32(stream & NUMBER);
    put_length(&mut frame, if fin { FIN } else { 0 }, bytes.len());
    frame.put_slice(bytes);
    frame.freeze()
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + body.len());
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    put_length(&mut frame, 0, body.len());
    frame.put_slice(body);
    frame.freeze()
}

fn put_length(frame: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    frame.put_u32(u32::from(flags) << 24 | length);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(packer: &mut Packer, stream: u32, headers: &[(&str, &str)]) -> Bytes {
        let block = packer.pack(headers).unwrap();
        control(
            SYN_STREAM,
            &[stream.to_be_bytes().as_slice(), &[0; 6], &block].concat(),
        )
    }

    #[test]
    fn frames_are_found_wherever_the_messages_are_cut() {
        let mut packer = Packer::new().unwrap();
        let bytes = [
            open(&mut packer, 1, &[("streamtype", "error")]),
            open(&mut packer, 3, &[("streamtype", "data")]),
            data(3, false, b"hello"),
            ping(1),
            control(4, &[0; 4]),
            data(3, true, b""),
            reset(3, 5),
            control(GOAWAY, &[0; 8]),
        ]
        .concat();
        let header = |value: &str| vec![("streamtype".to_owned(), value.to_owned())];
        let frame = |stream, headers| Frame::Open {
            stream,
            fin: false,
            headers,
        };
        let part = |fin, text: &'static str| Frame::Data {
            stream: 3,
            fin,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let expected = [
            frame(1, header("error")),
            frame(3, header("data")),
            part(false, "hello"),
            Frame::Ping { id: 1 },
            Frame::Other,
            part(true, ""),
            Frame::Reset { stream: 3 },
            Frame::GoAway,
        ];
        for size in [1, 3, 7, bytes.len()] {
            let mut reader = Reader::new();
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                reader.push(chunk);
                while let Some(frame) = reader.next().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, expected, "cut after every {size} bytes");
        }
    }

    #[test]
    fn what_is_no_spdy_is_refused() {
        let read = |bytes: &[u8]| {
            let mut reader = Reader::new();
            reader.push(bytes);
            reader.next()
        };
        assert!(matches!(
            read(b"\x80\x02\x00\x01\0\0\0\0"),
            Err(FrameError::Version(2))
        ));
        assert!(matches!(
            read(b"\x80\x03\x00\x01\0\xff\xff\xff"),
            Err(FrameError::TooLong { .. })
        ));
        assert!(matches!(
            read(b"\x80\x03\x00\x03\0\0\0\x01x"),
            Err(FrameError::TooShort(3))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(chunks: Vec<Vec<u8>>) {
            let mut reader = Reader::new();
            for chunk in chunks {
                reader.push(&chunk);
                while let Ok(Some(_)) = reader.next() {}
            }
        }
    }
}
