package main

// What a real node adds to the control plane: containerd, runc, a kubelet, a kube-proxy and the cluster's
// DNS, in a network namespace of their own together with everything else, so that pods reach the API server and each
// other, and nothing of this machine's network is touched. Needs root, and the programs containerd,
// runc, nsenter, ip, iptables and the CNI plugins.

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	nodeName    = "real"
	nodeAddress = "10.245.0.1"
	// Where Debian keeps the CNI plugins; others keep them where CNI_PATH says.
	cniPlugins = "/usr/lib/cni"
	// Simulated nodes are distinguished from the real node by kwok's own annotation and taint.
	fakeKey   = "kwok.x-k8s.io/node"
	fakeValue = "fake"
)

// network is a namespace with one address in it, and a unique name.
type network struct{ name string }

// Every hierarchy of a cgroup v1 machine is a directory in here; on cgroup v2 this is the only one.
const cgroups = "/sys/fs/cgroup"

func newNetwork() (*network, error) {
	n := &network{fmt.Sprintf("action-executor-%d", os.Getpid())}
	for _, group := range n.cgroups() {
		if err := os.Mkdir(group, 0o755); err != nil {
			return nil, err
		}
	}
	if err := run("ip", "netns", "add", n.name); err != nil {
		return nil, err
	}
	// The kernel requires a device behind the default route; a veth pair with both ends here is enough.
	for _, line := range []string{
		"ip link set lo up",
		"ip link add uplink type veth peer name nowhere",
		"ip address add " + nodeAddress + "/24 dev uplink",
		"ip link set uplink up",
		"ip link set nowhere up",
		"ip route add default dev uplink",
		"sysctl -q -w net.ipv4.ip_forward=1",
	} {
		if err := run(n.inside(strings.Fields(line))...); err != nil {
			n.remove()
			return nil, err
		}
	}
	return n, nil
}

// inside is the command that runs this one in the namespace. `ip netns exec` would mount another /sys,
// in which a kubelet finds no cgroups.
func (n *network) inside(command []string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + n.name, "--"}, command...)
}

// cgroups are the directories of our own part of the cgroup tree, so that no other kubelet removes it.
func (n *network) cgroups() []string {
	if _, err := os.Stat(cgroups + "/cgroup.controllers"); err == nil {
		return []string{filepath.Join(cgroups, n.name)}
	}
	hierarchies, _ := filepath.Glob(cgroups + "/*/cgroup.procs")
	for i, path := range hierarchies {
		hierarchies[i] = filepath.Join(filepath.Dir(path), n.name)
	}
	return hierarchies
}

func (n *network) remove() {
	_ = run("ip", "netns", "delete", n.name)
	for _, group := range n.cgroups() {
		var directories []string
		_ = filepath.WalkDir(group, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				directories = append(directories, path)
			}
			return nil
		})
		// The innermost come last.
		for i := len(directories) - 1; i >= 0; i-- {
			_ = os.Remove(directories[i])
		}
	}
}

func run(command ...string) error {
	output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, output)
	}
	return nil
}

// forward forwards a local address to one in the namespace, and returns it.
func (c *cluster) forward(target string) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return "", err
	}
	defer file.Close()
	forwarder := c.component("forward", target)
	// The socket is created in the outer namespace; its connections are dialled in the inner one.
	forwarder.files = []*os.File{file}
	c.components = append(c.components, forwarder)
	return listener.Addr().String(), forwarder.start()
}

// node holds the processes of the real node; the API server is up when they start.
func (c *cluster) node(paths credentials) ([]*component, error) {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	plugins := os.Getenv("CNI_PATH")
	if plugins == "" {
		plugins = cniPlugins
	}
	socket := file("containerd.sock")
	for name, content := range map[string]string{
		"cni/10-pods.conflist": fmt.Sprintf(podNetwork, file("addresses")),
		"containerd.toml":      fmt.Sprintf(containerdConfig, file("containerd"), file("containerd-run"), socket, plugins, file("cni")),
		"kubelet.yaml":         fmt.Sprintf(kubeletConfig, paths.ca, socket, c.network.name, nodeAddress),
		"kube-proxy.yaml":      fmt.Sprintf(proxyConfig, c.inner),
		"Corefile":             fmt.Sprintf(corefile, nodeAddress, c.inner),
	} {
		if err := os.MkdirAll(filepath.Dir(file(name)), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	kubeconfig := file("kubelet.kubeconfig")
	if err := paths.writeKubeconfig(kubeconfig, c.innerServer, paths.nodeCert, paths.nodeKey); err != nil {
		return nil, err
	}
	return []*component{
		c.component("containerd", "--config="+file("containerd.toml")),
		c.component("kubelet", "--config="+file("kubelet.yaml"), "--kubeconfig="+kubeconfig,
			"--hostname-override="+nodeName, "--node-ip="+nodeAddress, "--root-dir="+file("kubelet"),
			"--cert-dir="+file("kubelet-pki")),
		c.component("kube-proxy", "--config="+file("kube-proxy.yaml"), "--hostname-override="+nodeName),
		c.component("coredns", "-conf="+file("Corefile")),
	}, nil
}

// importPause gives containerd the one image that every pod needs.
func (c *cluster) importPause() error {
	self, _ := os.Executable()
	return c.eventually("containerd has the pause image", func(context.Context) error {
		return run("ctr", "--address="+c.dir+"/containerd.sock", "--namespace=k8s.io",
			"images", "import", filepath.Join(filepath.Dir(self), "pause.tar"))
	})
}

// removeNode ends every container, whose shims outlive containerd, and unmounts what the kubelet and
// containerd mounted.
func (c *cluster) removeNode() {
	for _, shim := range processes(c.dir + "/containerd.sock") {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shim, shim))
		for _, child := range append(strings.Fields(string(children)), strconv.Itoa(shim)) {
			if process, err := strconv.Atoi(child); err == nil {
				_ = syscall.Kill(process, syscall.SIGKILL)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	// What was mounted last has to go first.
	lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		fields := strings.Fields(lines[i])
		if len(fields) > 1 && strings.HasPrefix(fields[1], c.dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	c.network.remove()
}

// processes finds those with this word in their command line.
func processes(word string) []int {
	var found []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, _ := os.ReadFile(path)
		process, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && strings.Contains(string(line), word) {
			found = append(found, process)
		}
	}
	return found
}

// The addresses in use are written down beside everything else of this cluster: those of pods that ended
// with it would be taken forever in the plugin's own directory, /var/lib/cni.
const podNetwork = `{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "10.244.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// The CRI plugin alone. An OOM score can only be lowered with a capability that containers lack, and
// without it runc fails.
const containerdConfig = `version = 2
root = "%s"
state = "%s"
[grpc]
address = "%s"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "test/pause:1"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "%s"
conf_dir = "%s"
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: "%s"}}
containerRuntimeEndpoint: "unix://%s"
cgroupDriver: cgroupfs
cgroupRoot: "/%s"
failCgroupV1: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
resolvConf: ""
clusterDNS: ["%s"]
clusterDomain: cluster.local
healthzPort: 10248
# Disk pressure on this machine must not affect the tests.
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
shutdownGracePeriod: 0s
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: "%s"}
clusterCIDR: 10.244.0.0/24
conntrack: {maxPerCore: 0, min: 0}
`

const corefile = `.:53 {
    bind %s
    errors
    kubernetes cluster.local {
        kubeconfig %s
    }
}
`
