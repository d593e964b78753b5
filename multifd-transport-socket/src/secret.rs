//! A secret that both ends share, shown to be known on every connection before anything else, and
//! never sent.
//!
//! The connecting side says `MFDK` and 32 random bytes; the other answers with 32 of its own and an
//! HMAC-SHA-256 over both, and gets one back. Each HMAC is over the word for its side, so that none
//! can be played back.

use multifd_core::ChannelError;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::path::Path;

/// First bytes of a connection that shows that it knows a secret.
pub(crate) const HELLO: [u8; 4] = *b"MFDK";
const NONCE: usize = 32;
const TAG: usize = 32;
/// Fewest bytes of a secret: whoever connects gets to see an HMAC, and can try out what is easy to
/// guess.
const FEWEST: usize = 16;
/// Most bytes of a secret's file.
const MOST: u64 = 64 << 10;

/// A secret shared by both ends. Only another multifd can show that it knows it: a QEMU cannot. It
/// keeps others from connecting; it hides nothing that is sent, and who sits on the path can still
/// change it: that takes TLS.
///
/// ```
/// use multifd_transport_socket::Secret;
///
/// assert!(Secret::new(b"correct horse battery staple").is_ok());
/// assert!(Secret::new(b"short").is_err());
/// ```
#[derive(Clone)]
pub struct Secret {
    key: hmac::Key,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why there is no secret to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It has too few bytes.
    #[error(
        "a secret of {found} bytes is too easy to guess: it needs at least {FEWEST} (as by: head -c 32 /dev/urandom | base64)"
    )]
    Short {
        /// Bytes it has.
        found: usize,
    },
    /// Its file cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Secret {
    /// A secret of at least 16 bytes.
    ///
    /// # Errors
    /// [`SecretError::Short`].
    pub fn new(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() < FEWEST {
            return Err(SecretError::Short { found: bytes.len() });
        }
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, bytes),
        })
    }

    /// Reads a secret from a file; a newline at its end is none of it. The file must be nobody's
    /// business but its owner's and its group's.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        use std::os::unix::fs::PermissionsExt;
        let refuse = |why: String| SecretError::File {
            path: path.display().to_string(),
            why,
        };
        let data = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?;
        if data.permissions().mode() & 0o007 != 0 {
            return Err(refuse(
                "everybody on this machine can read or write it (chmod o= it)".into(),
            ));
        }
        if data.len() > MOST {
            return Err(refuse(format!("it has more than {MOST} bytes")));
        }
        let bytes = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
        Self::new(bytes.trim_ascii_end()).map_err(|e| refuse(e.to_string()))
    }

    fn tag(&self, side: &[u8], client: &[u8; NONCE], server: &[u8; NONCE]) -> hmac::Tag {
        hmac::sign(&self.key, &[side, client, server].concat())
    }

    fn is_tag(&self, side: &[u8], client: &[u8; NONCE], server: &[u8; NONCE], tag: &[u8]) -> bool {
        hmac::verify(&self.key, &[side, client, server].concat(), tag).is_ok()
    }

    /// The connecting side: shows that it knows the secret, and sees to it that the other does.
    pub(crate) fn introduce(&self, wire: &mut dyn Wire) -> Result<(), ChannelError> {
        let mine = nonce()?;
        wire.put(&[&HELLO[..], &mine].concat())?;
        let (mut theirs, mut tag) = ([0; NONCE], [0; TAG]);
        let answer = wire.get(&mut theirs).and_then(|()| wire.get(&mut tag));
        answer.map_err(|error| match error {
            ChannelError::Closed { .. } | ChannelError::Io(_) => ChannelError::Peer(format!(
                "the destination did not answer to a shared secret: has it been given one? ({error})"
            )),
            error => error,
        })?;
        if !self.is_tag(b"listening", &mine, &theirs, &tag) {
            return Err(ChannelError::Peer(
                "the destination does not know the shared secret".into(),
            ));
        }
        wire.put(self.tag(b"connecting", &mine, &theirs).as_ref())
    }

    /// The listening side: sees to it that the other knows the secret, and shows that it does, too.
    pub(crate) fn examine(&self, wire: &mut dyn Wire) -> Result<(), ChannelError> {
        let mut hello = [0; 4];
        wire.get(&mut hello)?;
        if hello != HELLO {
            return Err(ChannelError::Peer(format!(
                "a connection starts with {:#010x}, not by showing that it knows the shared secret",
                u32::from_be_bytes(hello)
            )));
        }
        let mut theirs = [0; NONCE];
        wire.get(&mut theirs)?;
        let mine = nonce()?;
        let tag = self.tag(b"listening", &theirs, &mine);
        wire.put(&[&mine[..], tag.as_ref()].concat())?;
        let mut tag = [0; TAG];
        wire.get(&mut tag)?;
        if self.is_tag(b"connecting", &theirs, &mine, &tag) {
            return Ok(());
        }
        Err(ChannelError::Peer(
            "a connection does not know the shared secret".into(),
        ))
    }
}

/// A connection both ways, as far as is needed here.
pub(crate) trait Wire {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ChannelError>;
    fn get(&mut self, bytes: &mut [u8]) -> Result<(), ChannelError>;
}

fn nonce() -> Result<[u8; NONCE], ChannelError> {
    let mut nonce = [0; NONCE];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| ChannelError::Unsupported("the system has no random numbers".into()))?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    impl Wire for UnixStream {
        fn put(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
            Ok(self.write_all(bytes)?)
        }

        fn get(&mut self, bytes: &mut [u8]) -> Result<(), ChannelError> {
            Ok(self.read_exact(bytes)?)
        }
    }

    fn meet(one: &[u8], other: &[u8]) -> (Result<(), ChannelError>, Result<(), ChannelError>) {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let [one, other] = [one, other].map(|bytes| Secret::new(bytes).unwrap());
        std::thread::scope(|scope| {
            let serving = scope.spawn(move || other.examine(&mut server));
            let outcome = one.introduce(&mut client);
            drop(client);
            (outcome, serving.join().unwrap())
        })
    }

    #[test]
    fn both_must_know_it() {
        let (one, other) = meet(b"sixteen letters!", b"sixteen letters!");
        assert!(one.is_ok() && other.is_ok());
        let (one, other) = meet(b"sixteen letters!", b"sixteen letters?");
        assert!(one.unwrap_err().to_string().contains("does not know"));
        assert!(other.is_err());
    }

    #[test]
    fn nothing_that_was_seen_opens_the_door_again() {
        let secret = Secret::new(b"sixteen letters!").unwrap();
        // Somebody who has no secret, and sends back what he gets.
        let (mut client, mut server) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| secret.examine(&mut server));
            client.write_all(&HELLO).unwrap();
            client.write_all(&[7; NONCE]).unwrap();
            let mut answer = [0; NONCE + TAG];
            client.read_exact(&mut answer).unwrap();
            client.write_all(&answer[NONCE..]).unwrap();
            let error = serving.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("does not know"), "{error}");
        });
    }

    #[test]
    fn a_secret_file_is_for_few_and_long_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "sixteen letters!\n").unwrap();
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        let error = Secret::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("everybody"), "{error}");
        mode(0o640);
        let secret = Secret::from_file(&path).unwrap();
        let plain = Secret::new(b"sixteen letters!").unwrap();
        let tag = secret.tag(b"x", &[1; NONCE], &[2; NONCE]);
        assert!(plain.is_tag(b"x", &[1; NONCE], &[2; NONCE], tag.as_ref()));
        std::fs::write(&path, "fifteen letters\n").unwrap();
        assert!(
            Secret::from_file(&path)
                .unwrap_err()
                .to_string()
                .contains("15 bytes")
        );
        assert!(Secret::from_file(folder.path()).is_err());
    }
}
