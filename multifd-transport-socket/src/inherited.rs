//! Descriptors that were there when this process began.

use crate::{Address, sys};
use socket2::{Socket, Type};
use std::io::{self, ErrorKind};

/// The first descriptor a service manager passes.
const FIRST: i32 = 3;
/// Most of them: a source has a main connection and 255 channels at most.
const MOST: i32 = 256;

/// The descriptors' numbers.
pub(crate) fn numbers(address: &Address) -> io::Result<Vec<i32>> {
    match address {
        Address::Descriptors(numbers) => Ok(numbers.clone()),
        Address::Activated => {
            let variable = |name| std::env::var(name).ok();
            activated(
                variable("LISTEN_PID"),
                variable("LISTEN_FDS"),
                std::process::id(),
            )
            .map_err(|why| io::Error::new(ErrorKind::NotFound, why))
        }
        _ => Ok(Vec::new()),
    }
}

/// What a service manager's variables say to the process `me`.
fn activated(pid: Option<String>, count: Option<String>, me: u32) -> Result<Vec<i32>, String> {
    let (Some(pid), Some(count)) = (pid, count) else {
        return Err(
            "no service manager has passed any sockets (LISTEN_PID and LISTEN_FDS are not set)"
                .into(),
        );
    };
    if pid.parse() != Ok(me) {
        return Err(format!(
            "the sockets were passed to process {pid}, this is {me}"
        ));
    }
    match count.parse() {
        Ok(count) if (1..=MOST).contains(&count) => Ok((FIRST..FIRST + count).collect()),
        _ => Err(format!("LISTEN_FDS is {count:?}, expected 1 to {MOST}")),
    }
}

/// A stream socket by the number of its descriptor; the descriptor itself stays as it is.
pub(crate) fn stream(number: i32) -> io::Result<Socket> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("descriptor {number}: {error}"));
    if sys::is_ours(number).map_err(named)? {
        let why = "it was not inherited, but opened by this program";
        return Err(named(io::Error::new(ErrorKind::InvalidInput, why)));
    }
    let socket = sys::duplicate(number).map_err(named)?;
    if socket.r#type().map_err(named)? != Type::STREAM {
        return Err(named(io::Error::new(
            ErrorKind::InvalidInput,
            "it is no stream socket",
        )));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_managers_variables_count_for_their_process_only() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(activated(some("7"), some("2"), 7).unwrap(), [3, 4]);
        for (pid, count, why) in [
            (None, some("1"), "not set"),
            (some("8"), some("1"), "process 8, this is 7"),
            (some("x"), some("1"), "process x"),
            (some("7"), some("0"), "expected 1 to 256"),
            (some("7"), some("1000000"), "expected 1 to 256"),
        ] {
            let error = activated(pid, count, 7).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_is_no_socket_is_refused() {
        assert!(
            stream(i32::MAX)
                .unwrap_err()
                .to_string()
                .contains("descriptor")
        );
        let file = tempfile::tempfile().unwrap();
        let error = stream(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap_err();
        assert!(error.to_string().contains("was not inherited"), "{error}");
    }
}
