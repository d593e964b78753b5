//! A QEMU's command line, with the options that have it map a snapshot.

use super::QemuOptions;
use crate::Error;
use std::ffi::{OsStr, OsString};

impl QemuOptions {
    /// A QEMU's arguments (without its name) as it was started before, so that it maps the
    /// snapshot: backends of the same names are replaced, `-machine` gets its memory, and the
    /// options above come last.
    ///
    /// # Errors
    /// [`Error::CannotMap`] for arguments that cannot be combined with it: another `-incoming`,
    /// `-loadvm`, or locked memory.
    pub fn apply(&self, arguments: &[OsString]) -> Result<Vec<OsString>, Error> {
        let mut all = Vec::with_capacity(arguments.len() + 8);
        let mut has_memory = false;
        let mut at = arguments.iter();
        while let Some(word) = at.next() {
            let option = word
                .to_str()
                .map(|text| text.strip_prefix("--").map_or(text, |rest| rest));
            let option = option.map(|text| text.strip_prefix('-').unwrap_or(text));
            let refused = |why: &str| Err(Error::CannotMap(why.into()));
            match option {
                Some("incoming" | "loadvm") if is_option(word) => {
                    return refused(
                        "leave -incoming and -loadvm out of QEMU's arguments: the snapshot is what it starts from",
                    );
                }
                Some("mem-prealloc") if is_option(word) => {
                    return refused(
                        "-mem-prealloc would copy all of the snapshot into memory: leave it out",
                    );
                }
                Some("overcommit") if is_option(word) => {
                    let value = at.next();
                    let text = value.and_then(|value| value.to_str()).unwrap_or_default();
                    if text.split(',').any(|part| part == "mem-lock=on") {
                        return refused(
                            "-overcommit mem-lock=on would copy all of the snapshot into memory: leave it out",
                        );
                    }
                    all.push(word.clone());
                    all.extend(value.cloned());
                }
                Some("object") if is_option(word) => {
                    let value = at.next();
                    // Ours has its name.
                    if !value.is_some_and(|value| self.replaces(value)) {
                        all.push(word.clone());
                        all.extend(value.cloned());
                    }
                }
                Some("machine" | "M") if is_option(word) => {
                    let value = at.next();
                    let text = value.and_then(|value| value.to_str()).unwrap_or_default();
                    has_memory |= text
                        .split(',')
                        .any(|part| part.starts_with("memory-backend="));
                    all.push(word.clone());
                    all.extend(value.cloned());
                }
                _ => all.push(word.clone()),
            }
        }
        let mut ours = self.arguments().into_iter();
        while let (Some(option), Some(value)) = (ours.next(), ours.next()) {
            if has_memory && option == "-machine" {
                continue;
            }
            all.extend([option, value]);
        }
        Ok(all)
    }

    /// Whether an `-object` is a backend that ours takes the place of.
    fn replaces(&self, object: &OsStr) -> bool {
        let Some(text) = object.to_str() else {
            return false;
        };
        let mut parts = text.split(',');
        let is_backend = parts
            .next()
            .is_some_and(|kind| kind.starts_with("memory-backend-"));
        let id = parts.find_map(|part| part.strip_prefix("id="));
        let ours = |id: &str| {
            let mut all = self.backends.iter();
            all.any(|backend| backend.object_id() == id)
        };
        is_backend && id.is_some_and(ours)
    }
}

fn is_option(word: &OsStr) -> bool {
    word.to_str().is_some_and(|text| text.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::*;

    fn options(ids: &[&str]) -> QemuOptions {
        let backend = |id: &&str| Backend {
            id: (*id).into(),
            size: 4096,
            offset: 4096,
        };
        QemuOptions {
            path: "/vm".into(),
            machine: "pc".into(),
            backends: ids.iter().map(backend).collect(),
            machine_memory: ids.contains(&"pc.ram").then(|| "pc.ram".into()),
        }
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn applied(ids: &[&str], text: &str) -> String {
        let all = options(ids).apply(&words(text)).unwrap();
        let all: Vec<_> = all.iter().map(|word| word.to_str().unwrap()).collect();
        all.join(" ")
    }

    #[test]
    fn options_are_added_and_backends_replaced() {
        let one = applied(&["pc.ram"], "-M pc -m 64 -S");
        assert!(
            one.starts_with("-M pc -m 64 -S -object memory-backend-file,id=pc.ram,"),
            "{one}"
        );
        assert!(
            one.ends_with("-machine memory-backend=pc.ram -incoming defer"),
            "{one}"
        );
        let own = applied(
            &["pc.ram"],
            "-M pc,memory-backend=pc.ram -object memory-backend-memfd,id=pc.ram,size=64M -object rng-random,id=r",
        );
        assert!(
            own.starts_with(
                "-M pc,memory-backend=pc.ram -object rng-random,id=r -object memory-backend-file"
            ),
            "{own}"
        );
        assert!(!own.contains("memfd") && !own.contains("-machine"), "{own}");
        let numa = applied(
            &["mem0", "mem1"],
            "-object memory-backend-ram,size=8M,id=mem0 -object memory-backend-ram,size=8M,id=mem1 -numa node,memdev=mem0",
        );
        assert!(
            !numa.contains("backend-ram") && !numa.contains("-machine"),
            "{numa}"
        );
    }

    #[test]
    fn what_would_undo_it_is_refused() {
        for text in [
            "-incoming tcp:0:1",
            "--loadvm x",
            "-mem-prealloc",
            "-overcommit cpu-pm=on,mem-lock=on",
        ] {
            let error = options(&["pc.ram"]).apply(&words(text)).unwrap_err();
            assert!(matches!(error, Error::CannotMap(_)), "{text}: {error}");
        }
        assert!(
            options(&["pc.ram"])
                .apply(&words("-overcommit cpu-pm=on"))
                .is_ok()
        );
    }
}
