//! Plans into maps: neighbouring operations of one map become one batch, in the order of the plan.

use ebpf_abi::{Backend, FrontendKey, Plain, RangeKey, RouteKey};
use node_agent_model::{FamilyOp, MapOp, MapSink, PackedName, SinkError, Snapshot};

use crate::{MapError, MapFamily, Maps, Table, bytes::as_bytes, snapshot, table::RawMap};

/// Neighbouring operations of one kind on one map.
struct Run<'a> {
    map: &'a RawMap,
    delete: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// For each element the index of the operation that it came from.
    operations: Vec<usize>,
}

impl MapSink for Maps {
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), SinkError> {
        let mut writer = Writer { run: None };
        for (index, op) in ops.iter().enumerate() {
            match op {
                MapOp::V4(op) => writer.add_family(index, self, op)?,
                MapOp::V6(op) => writer.add_family(index, self, op)?,
                MapOp::Config(config) => writer.add(index, &self.config, &0, Some(&**config))?,
                MapOp::Slots { base, backend_ids } => {
                    for (slot, backend) in (*base..).zip(backend_ids) {
                        writer.add(index, &self.slot, &slot, Some(backend))?;
                    }
                }
                MapOp::Service { id, service } => {
                    writer.add(index, &self.service, id, service.as_ref())?;
                }
                MapOp::ServiceName { id, name } => {
                    writer.add(
                        index,
                        &self.service_name,
                        id,
                        name.as_ref().map(PackedName::full).as_ref(),
                    )?;
                }
                MapOp::Peer { id, peer } => writer.add(index, &self.peer, id, Some(&**peer))?,
                MapOp::PeerName { id, name } => {
                    if name.is_some() {
                        writer.count_anew(index, &self.peer_count, *id)?;
                    }
                    writer.add(index, &self.peer_name, id, name.as_deref())?;
                }
            }
        }
        writer.flush()
    }

    fn snapshot(&self) -> Result<Snapshot, SinkError> {
        snapshot::read(self).map_err(|error| sink_error(error, None))
    }
}

/// Collects operations until one of another kind or map comes.
struct Writer<'a> {
    run: Option<Run<'a>>,
}

impl<'a> Writer<'a> {
    fn add_family<A: MapFamily>(
        &mut self,
        index: usize,
        maps: &'a Maps,
        op: &FamilyOp<A>,
    ) -> Result<(), SinkError> {
        let maps = A::of(maps);
        match op {
            FamilyOp::Frontend { key, frontend } => {
                self.add::<FrontendKey<A>, _>(index, &maps.frontend, key, frontend.as_ref())
            }
            FamilyOp::Range { key, admitted } => {
                let value = admitted.then_some(1);
                self.add::<RangeKey<A>, u32>(index, &maps.range, key, value.as_ref())
            }
            FamilyOp::Backend { id, backend } => {
                self.add::<_, Backend<A>>(index, &maps.backend, id, Some(backend))
            }
            FamilyOp::Endpoint { addr, endpoint } => {
                self.add(index, &maps.endpoint, addr, endpoint.as_ref())
            }
            FamilyOp::Route { key, route } => {
                self.add::<RouteKey<A>, _>(index, &maps.route, key, route.as_ref())
            }
        }
    }

    /// A new holder of the id is not told what an earlier one sent.
    fn count_anew(&mut self, index: usize, counts: &'a RawMap, id: u32) -> Result<(), SinkError> {
        self.flush()?;
        let cleared = counts.clear(as_bytes(&id));
        cleared.map_err(|error| sink_error(error, Some(index)))
    }

    fn add<K: Plain, V: Plain>(
        &mut self,
        index: usize,
        table: &'a Table<K, V>,
        key: &K,
        value: Option<&V>,
    ) -> Result<(), SinkError> {
        let delete = value.is_none();
        let fits = self
            .run
            .as_ref()
            .is_some_and(|run| std::ptr::eq(run.map, table.raw()) && run.delete == delete);
        if !fits {
            self.flush()?;
        }
        let run = self.run.get_or_insert_with(|| Run {
            map: table.raw(),
            delete,
            keys: Vec::new(),
            values: Vec::new(),
            operations: Vec::new(),
        });
        run.keys.extend_from_slice(as_bytes(key));
        if let Some(value) = value {
            run.values.extend_from_slice(as_bytes(value));
        }
        run.operations.push(index);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        let count = run.operations.len();
        let result = if run.delete {
            run.map.delete(&run.keys, count)
        } else {
            run.map.update(&run.keys, &run.values, count)
        };
        result.map_err(|error| {
            let operation = run.operations.get(error.index).copied();
            sink_error(error, operation)
        })
    }
}

fn sink_error(error: MapError, index: Option<usize>) -> SinkError {
    SinkError {
        map: error.map,
        action: error.action,
        index,
        full: error.full(),
        source: error.source,
    }
}
