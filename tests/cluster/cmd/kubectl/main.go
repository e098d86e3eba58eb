// kubectl on its own, of the cluster's version: for inspecting the tests' cluster, and as a
// peer that benchmarks are measured against.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() {
	os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
}
