//! The store in real etcd: conformance.

use control_plane_store::etcd::testing::LocalEtcd;
use control_plane_store::store_conformance;

store_conformance!(LocalEtcd);
