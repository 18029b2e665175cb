//! Other pids in CRIU's messages than those of the recording, which may be anybody's by now.

use prost::Message as _;

use crate::rpc::fields::{self, Malformed, Value, fields};
use crate::rpc::wire::CriuResp;

/// `criu_resp.success`
const SUCCESS: u32 = 2;
/// The messages in `criu_resp` that hold a pid, and the number that it has there: `restore`, `notify`, `ps`.
const HOLDERS: [(u32, u32); 3] = [(RESTORE, 1), (5, 2), (PS, 3)];
const RESTORE: u32 = 4;
const PS: u32 = 6;

/// The message with `pid` in the place of every pid. What says that there is none stays: -1 in the answer to a restore that
/// failed, 0 for a page server's.
pub(super) fn replaced(message: &[u8], pid: i32) -> Vec<u8> {
    match rewritten(message, pid) {
        Ok(message) => message,
        // No message for anybody; or one for whoever is less strict, who must not get the pids either.
        Err(Malformed) => match CriuResp::decode(message) {
            Ok(response) => decoded(response, pid).encode_to_vec(),
            Err(_) => message.to_vec(),
        },
    }
}

fn rewritten(message: &[u8], pid: i32) -> Result<Vec<u8>, Malformed> {
    let mut result = Vec::with_capacity(message.len());
    let fields = fields(message)?;
    let success = fields.iter().rev().find_map(|field| match field.value {
        Value::Number(number) if field.number == SUCCESS => Some(number != 0),
        _ => None,
    });
    for field in fields {
        let holder = HOLDERS.iter().find(|(holder, _)| *holder == field.number);
        match (holder, field.value) {
            (Some((holder, number)), Value::Bytes(inner)) => {
                let inner = inside(inner, *number, pid, |old| {
                    (*holder == RESTORE && old == -1 && success != Some(true))
                        || (*holder == PS && old == 0)
                })?;
                fields::put_bytes(&mut result, field.number, &inner);
            }
            _ => result.extend_from_slice(field.bytes),
        }
    }
    Ok(result)
}

fn inside(
    message: &[u8],
    number: u32,
    pid: i32,
    stays: impl Fn(i64) -> bool,
) -> Result<Vec<u8>, Malformed> {
    let mut result = Vec::with_capacity(message.len());
    for field in fields(message)? {
        match field.value {
            Value::Number(old) if field.number == number && !stays(old.cast_signed()) => {
                fields::put_number(&mut result, number, i64::from(pid).cast_unsigned());
            }
            _ => result.extend_from_slice(field.bytes),
        }
    }
    Ok(result)
}

fn decoded(mut response: CriuResp, pid: i32) -> CriuResp {
    if let Some(restore) = &mut response.restore {
        restore.pid = pid;
    }
    let notified = response.notify.as_mut().map(|notify| &mut notify.pid);
    let served = response.ps.as_mut().map(|ps| &mut ps.pid);
    for held in notified.into_iter().chain(served) {
        *held = held.map(|_| pid);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::CriuReqType;
    use crate::testing::{Callback, Request, Response};

    const OTHER: i32 = 77;

    fn seen(message: &[u8]) -> CriuResp {
        CriuResp::decode(replaced(message, OTHER).as_slice()).unwrap()
    }

    #[test]
    fn every_pid_is_another() {
        let callback = Callback::new("post-restore").pid(4711).to_bytes();
        assert_eq!(seen(&callback).notify.unwrap().pid, Some(OTHER));
        for told in [4711, 1, 0, -1, -4711] {
            let answer = Response::success(Request::Restore).restore_pid(told);
            assert_eq!(seen(&answer.to_bytes()).restore.unwrap().pid, OTHER);
        }
        for told in [4711, 0, -2] {
            let answer = Response::failure(Request::Restore).restore_pid(told);
            assert_eq!(seen(&answer.to_bytes()).restore.unwrap().pid, OTHER);
        }
        let served = Response::success(Request::PageServer).page_server(Some(27), Some(4711));
        assert_eq!(seen(&served.to_bytes()).ps.unwrap().pid, Some(OTHER));
        assert_eq!(seen(&served.to_bytes()).ps.unwrap().port, Some(27));
    }

    #[test]
    fn what_says_that_there_is_none_stays_and_all_else_does() {
        for message in [
            Response::failure(Request::Restore)
                .restore_pid(-1)
                .to_bytes(),
            Response::success(Request::PageServer)
                .page_server(None, Some(0))
                .to_bytes(),
            Callback::new("pre-dump").to_bytes(),
            b"no message".to_vec(),
        ] {
            assert_eq!(replaced(&message, OTHER), message);
        }
        let mut message = Callback::new("post-restore").pid(4711).to_bytes();
        fields::put_bytes(&mut message, 99, b"later");
        let result = replaced(&message, OTHER);
        assert!(result.ends_with(b"later"));
        assert_eq!(seen(&result).r#type, i32::from(CriuReqType::Notify));
    }

    #[test]
    fn a_field_that_only_others_can_skip_hides_no_pid() {
        let mut message = Callback::new("post-restore").pid(4711).to_bytes();
        // An empty group, number 99.
        prost::encoding::encode_key(99, prost::encoding::WireType::StartGroup, &mut message);
        prost::encoding::encode_key(99, prost::encoding::WireType::EndGroup, &mut message);
        assert!(CriuResp::decode(message.as_slice()).is_ok());
        assert_eq!(seen(&message).notify.unwrap().pid, Some(OTHER));
    }
}
