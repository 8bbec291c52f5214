//! Stand-ins for programs that no distribution packages: Go packages with the paths, types and layouts of a new kubelet
//! and a containerd 2.2, and of an old kubelet, so that names are those that real compilers write.

use std::path::Path;

/// Kubelet 1.31 and containerd 2.2: exported Relist, cri-client with contexts, protobuf-go messages of the newer layout.
pub const NEW: &[(&str, &str)] = &[
    (
        "k8s.io/kubernetes/pkg/kubelet/pleg/generic.go",
        r#"package pleg
type GenericPLEG struct{ List func() }
//go:noinline
func (g *GenericPLEG) Relist() { g.List() }
"#,
    ),
    (
        "k8s.io/cri-client/pkg/remote.go",
        r#"package cri
import "context"
type remoteRuntimeService struct{ call func(string) }
func New(f func(string)) *remoteRuntimeService { return &remoteRuntimeService{f} }
//go:noinline
func (r *remoteRuntimeService) ListContainers(ctx context.Context) error { r.call(""); return nil }
//go:noinline
func (r *remoteRuntimeService) ContainerStatus(ctx context.Context, id string, verbose bool) error { r.call(id); return nil }
"#,
    ),
    (
        "k8s.io/cri-api/pkg/apis/runtime/v1/api.go",
        r#"package v1
type UpdateContainerResourcesRequest struct {
	state       uintptr
	ContainerId string
	Linux       *int
}
func (x *UpdateContainerResourcesRequest) GetContainerId() string {
	if x != nil {
		return x.ContainerId
	}
	return ""
}
"#,
    ),
    (
        "github.com/containerd/containerd/v2/internal/cri/instrument/service.go",
        r#"package instrument
import (
	"context"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)
type instrumentedService struct{ call func(string) }
func New(f func(string)) *instrumentedService { return &instrumentedService{f} }
//go:noinline
func (in *instrumentedService) ListContainers(ctx context.Context) { in.call("") }
//go:noinline
func (in *instrumentedService) UpdateContainerResources(ctx context.Context, r *runtime.UpdateContainerResourcesRequest) {
	in.call(r.ContainerId)
}
"#,
    ),
    (
        "github.com/containerd/containerd/v2/cmd/containerd/main.go",
        r#"package main
import (
	"context"
	"github.com/containerd/containerd/v2/internal/cri/instrument"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/kubelet/pleg"
	cri "k8s.io/cri-client/pkg"
)
var Getter interface{ GetContainerId() string }
func main() {
	show := func(s string) { println(s) }
	r := &runtime.UpdateContainerResourcesRequest{}
	Getter = r
	in := instrument.New(show)
	in.ListContainers(context.Background())
	in.UpdateContainerResources(context.Background(), r)
	(&pleg.GenericPLEG{List: func() { show(Getter.GetContainerId()) }}).Relist()
	c := cri.New(show)
	_ = c.ListContainers(context.Background())
	_ = c.ContainerStatus(context.Background(), "", true)
}
"#,
    ),
];

/// Kubelet 1.19: unexported relist, exported RemoteRuntimeService without contexts.
pub const OLD: &[(&str, &str)] = &[
    (
        "k8s.io/kubernetes/pkg/kubelet/pleg/generic.go",
        r#"package pleg
type GenericPLEG struct{ List func() }
//go:noinline
func (g *GenericPLEG) relist() { g.List() }
func (g *GenericPLEG) Start() { g.relist() }
"#,
    ),
    (
        "k8s.io/kubernetes/pkg/kubelet/cri/remote/remote_runtime.go",
        r#"package remote
type RemoteRuntimeService struct{ Call func(string) }
//go:noinline
func (r *RemoteRuntimeService) ListContainers() error { r.Call(""); return nil }
//go:noinline
func (r *RemoteRuntimeService) ContainerStatus(id string) error { r.Call(id); return nil }
"#,
    ),
    (
        "k8s.io/kubernetes/cmd/kubelet/main.go",
        r#"package main
import (
	"k8s.io/kubernetes/pkg/kubelet/cri/remote"
	"k8s.io/kubernetes/pkg/kubelet/pleg"
)
func main() {
	c := &remote.RemoteRuntimeService{Call: func(s string) { println(s) }}
	(&pleg.GenericPLEG{List: func() { _ = c.ListContainers() }}).Start()
	_ = c.ContainerStatus("")
}
"#,
    ),
];

/// Writes the packages below `path/src`.
pub fn write(path: &Path, sources: &[(&str, &str)]) {
    for (name, text) in sources {
        let file = path.join("src").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
}
