//! The sequence of messages of one request, without I/O: datagrams go in, callbacks and the final answer come out.

use std::os::fd::OwnedFd;

use prost::Message;

use super::transport::Datagram;
use super::wire::{CriuReq, CriuReqType, CriuResp};

/// One request and what has come back for it.
#[derive(Debug)]
pub(crate) struct Session {
    request: CriuReqType,
    unanswered: usize,
    answered: bool,
}

/// What a datagram from CRIU turned out to be.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// CRIU waits: exactly one [`Session::reply`] is due for each of these, in the order of arrival.
    Callback(Callback),
    /// The final answer to the request.
    Answer(Box<CriuResp>),
}

/// A notify callback as it came over the wire.
#[derive(Debug)]
pub(crate) struct Callback {
    pub(crate) script: String,
    pub(crate) pid: Option<i32>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// How the other side broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The datagram is no `criu_resp`.
    #[error("CRIU sent {length} bytes that are no response ({reason})")]
    Undecodable {
        /// Length of the datagram in bytes.
        length: usize,
        /// What the decoder stumbled over.
        reason: String,
    },
    /// An answer of another type than the request.
    #[error("expected the answer to {expected}, got one of type {got}")]
    UnexpectedType {
        /// The type of the request.
        expected: &'static str,
        /// The type that came: CRIU's name for it, or its number.
        got: String,
    },
    /// A NOTIFY message that names no script.
    #[error("CRIU sent a callback without a script name")]
    CallbackWithoutScript,
    /// Something came after the final answer.
    #[error("CRIU sent another message of type {got} after its answer to {expected}")]
    AfterAnswer {
        /// The type of the request.
        expected: &'static str,
        /// The type that came.
        got: String,
    },
    /// A field that this answer cannot do without is missing.
    #[error("the answer to {request} has no {field}")]
    MissingField {
        /// The type of the request.
        request: &'static str,
        /// The field's name in `rpc.proto`.
        field: &'static str,
    },
}

impl Session {
    pub(crate) fn new(request: CriuReqType) -> Self {
        Self {
            request,
            unanswered: 0,
            answered: false,
        }
    }

    /// Takes the next datagram. Descriptors that belong to no callback are closed.
    pub(crate) fn take(&mut self, datagram: Datagram) -> Result<Incoming, Violation> {
        let response = CriuResp::decode(datagram.bytes.as_slice()).map_err(|error| {
            Violation::Undecodable {
                length: datagram.bytes.len(),
                reason: error.to_string(),
            }
        })?;
        let expected = self.request.as_str_name();
        if self.answered {
            return Err(Violation::AfterAnswer {
                expected,
                got: type_name(response.r#type),
            });
        }
        match CriuReqType::try_from(response.r#type) {
            Ok(CriuReqType::Notify) => {
                let notify = response.notify.unwrap_or_default();
                let script = notify.script.ok_or(Violation::CallbackWithoutScript)?;
                self.unanswered += 1;
                Ok(Incoming::Callback(Callback {
                    script: String::from_utf8_lossy(&script).into_owned(),
                    pid: notify.pid,
                    fds: datagram.fds,
                }))
            }
            Ok(answer) if self.is_answered_by(answer, response.success) => {
                self.answered = true;
                Ok(Incoming::Answer(Box::new(response)))
            }
            _ => Err(Violation::UnexpectedType {
                expected,
                got: type_name(response.r#type),
            }),
        }
    }

    /// The bytes that answer the oldest callback that has no answer yet; `None` when there is none.
    pub(crate) fn reply(&mut self, accept: bool, external: Vec<String>) -> Option<Vec<u8>> {
        self.unanswered = self.unanswered.checked_sub(1)?;
        let opts = (!external.is_empty()).then(|| super::wire::CriuOpts {
            images_dir_fd: -1,
            external,
            ..Default::default()
        });
        let reply = CriuReq {
            r#type: CriuReqType::Notify.into(),
            notify_success: Some(accept),
            opts,
            ..Default::default()
        };
        Some(reply.encode_to_vec())
    }

    /// CRIU's name of the request.
    pub(crate) fn request_name(&self) -> &'static str {
        self.request.as_str_name()
    }

    /// CRIU answers PAGE_SERVER_CHLD as PAGE_SERVER, and what it could not make sense of as a failed EMPTY.
    fn is_answered_by(&self, answer: CriuReqType, success: bool) -> bool {
        answer == self.request
            || (self.request == CriuReqType::PageServerChld && answer == CriuReqType::PageServer)
            || (answer == CriuReqType::Empty && !success)
    }
}

fn type_name(number: i32) -> String {
    CriuReqType::try_from(number).map_or_else(
        |_| number.to_string(),
        |known| known.as_str_name().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::wire::{CriuDumpResp, CriuNotify};
    use super::*;
    use proptest::prelude::*;

    fn datagram(response: &CriuResp) -> Datagram {
        Datagram {
            bytes: response.encode_to_vec(),
            fds: Vec::new(),
        }
    }

    fn answer(kind: CriuReqType, success: bool) -> Datagram {
        datagram(&CriuResp {
            r#type: kind.into(),
            success,
            ..Default::default()
        })
    }

    fn callback(script: &[u8]) -> Datagram {
        datagram(&CriuResp {
            r#type: CriuReqType::Notify.into(),
            success: true,
            notify: Some(CriuNotify {
                script: Some(script.to_vec()),
                pid: Some(7),
            }),
            ..Default::default()
        })
    }

    #[test]
    fn the_bytes_of_criu_4_2_1() {
        let mut session = Session::new(CriuReqType::Dump);
        let notify = b"\x08\x06\x10\x01\x2a\x0a\x0a\x08pre-dump".to_vec();
        let incoming = session.take(Datagram {
            bytes: notify,
            fds: Vec::new(),
        });
        assert!(
            matches!(incoming, Ok(Incoming::Callback(Callback { script, pid: None, .. })) if script == "pre-dump")
        );
        assert_eq!(
            session.reply(true, Vec::new()).unwrap(),
            b"\x08\x06\x18\x01"
        );
        let done = b"\x08\x01\x10\x01\x1a\x02\x08\x00".to_vec();
        let incoming = session.take(Datagram {
            bytes: done,
            fds: Vec::new(),
        });
        let Ok(Incoming::Answer(answer)) = incoming else {
            panic!("no answer: {incoming:?}")
        };
        assert!(answer.success);
        assert_eq!(
            answer.dump,
            Some(CriuDumpResp {
                restored: Some(false)
            })
        );
    }

    #[test]
    fn a_refusal_is_sent_in_so_many_words() {
        let mut session = Session::new(CriuReqType::Dump);
        session.take(callback(b"pre-dump")).unwrap();
        assert_eq!(
            session.reply(false, Vec::new()).unwrap(),
            b"\x08\x06\x18\x00"
        );
    }

    #[test]
    fn every_callback_is_answered_exactly_once() {
        let mut session = Session::new(CriuReqType::Restore);
        assert!(session.reply(true, Vec::new()).is_none());
        session.take(callback(b"orphan-pts-master")).unwrap();
        session.take(callback(b"orphan-pts-master")).unwrap();
        assert!(session.reply(true, Vec::new()).is_some());
        assert!(session.reply(true, Vec::new()).is_some());
        assert!(session.reply(true, Vec::new()).is_none());
    }

    #[test]
    fn script_names_need_not_be_known_or_utf8() {
        let mut session = Session::new(CriuReqType::Dump);
        let Ok(Incoming::Callback(got)) = session.take(callback(b"fl\xffy")) else {
            panic!("no callback")
        };
        assert_eq!(got.script, "fl\u{fffd}y");
        assert_eq!(got.pid, Some(7));
    }

    #[test]
    fn exceptions_to_the_echoed_type() {
        let mut page_server = Session::new(CriuReqType::PageServerChld);
        assert!(
            page_server
                .take(answer(CriuReqType::PageServer, true))
                .is_ok()
        );
        let mut refused = Session::new(CriuReqType::Dump);
        assert!(refused.take(answer(CriuReqType::Empty, false)).is_ok());
        let mut odd = Session::new(CriuReqType::Dump);
        assert!(odd.take(answer(CriuReqType::Empty, true)).is_err());
        let mut wrong = Session::new(CriuReqType::Dump);
        assert_eq!(
            wrong.take(answer(CriuReqType::Restore, true)).unwrap_err(),
            Violation::UnexpectedType {
                expected: "DUMP",
                got: "RESTORE".into()
            }
        );
    }

    #[test]
    fn nothing_may_follow_the_answer() {
        let mut session = Session::new(CriuReqType::Check);
        session.take(answer(CriuReqType::Check, true)).unwrap();
        assert!(matches!(
            session.take(callback(b"pre-dump")),
            Err(Violation::AfterAnswer { .. })
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut session = Session::new(CriuReqType::Dump);
            let _ = session.take(Datagram { bytes, fds: Vec::new() });
            prop_assert!(session.unanswered <= 1);
        }
    }
}
