//! What has to be set on a QEMU for a migration by us, and how to set it back.

use crate::failure::Failure;
use crate::method;
use crate::options::Compression;
use crate::qmp::Qmp;
use serde_json::{Map, Value, json};

/// Capabilities under which the stream is another than the one we speak, or goes another way.
const OFF: [&str; 13] = [
    "xbzrle",
    "rdma-pin-all",
    "postcopy-ram",
    "postcopy-preempt",
    "x-colo",
    "release-ram",
    "return-path",
    "pause-before-switchover",
    "dirty-bitmaps",
    "background-snapshot",
    "zero-copy-send",
    "x-ignore-shared",
    "mapped-ram",
];

/// Capabilities and parameters as they were, as far as they were changed.
#[derive(Default)]
pub(crate) struct Changed {
    capabilities: Vec<Value>,
    parameters: Map<String, Value>,
}

impl Changed {
    /// Sets QEMU up for multifd. What was there before is added to `self` first, so that it can be put back even if this
    /// fails half-way.
    pub(crate) fn set_up(
        &mut self,
        qmp: &mut Qmp,
        channels: u8,
        compression: Compression,
    ) -> Result<(), Failure> {
        let now = qmp.execute("query-migrate-capabilities", &json!({}))?;
        let mut wanted = Vec::new();
        for entry in now.as_array().into_iter().flatten() {
            let name = entry
                .get("capability")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let state = entry.get("state").and_then(Value::as_bool).unwrap_or(false);
            let change = match name {
                "multifd" => !state,
                _ => state && OFF.contains(&name),
            };
            if change {
                self.capabilities
                    .push(json!({ "capability": name, "state": state }));
                wanted.push(json!({ "capability": name, "state": !state }));
            }
        }
        if !wanted.is_empty() {
            qmp.execute("migrate-set-capabilities", &json!({ "capabilities": wanted }))?;
        }
        let now = qmp.execute("query-migrate-parameters", &json!({}))?;
        let mut wanted = Map::new();
        for (name, value) in [
            ("multifd-channels", json!(channels)),
            ("multifd-compression", json!(method::name(compression))),
            ("zero-page-detection", json!("multifd")),
            ("max-bandwidth", json!(0)),
            ("tls-creds", json!("")),
        ] {
            // A QEMU that does not know a parameter does not name it.
            if let Some(before) = now.get(name).filter(|&before| *before != value) {
                self.parameters.insert(name.into(), before.clone());
                wanted.insert(name.into(), value);
            }
        }
        if !wanted.is_empty() {
            qmp.execute("migrate-set-parameters", &Value::Object(wanted))?;
        }
        Ok(())
    }

    /// Puts everything back as it was.
    pub(crate) fn put_back(self, qmp: &mut Qmp) -> Result<(), Failure> {
        if !self.parameters.is_empty() {
            qmp.execute("migrate-set-parameters", &Value::Object(self.parameters))?;
        }
        if !self.capabilities.is_empty() {
            qmp.execute(
                "migrate-set-capabilities",
                &json!({ "capabilities": self.capabilities }),
            )?;
        }
        Ok(())
    }
}
