// Command kinds reads YAML from standard input as what its argument says, strictly: a field that the Prometheus
// operator does not know, or an expression that Prometheus cannot parse, is an error.
package main

import (
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = check(os.Args[1], text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(kind string, text []byte) error {
	switch kind {
	case "ServiceMonitor":
		return yaml.UnmarshalStrict(text, &monitoring.ServiceMonitor{})
	case "PrometheusRule":
		return yaml.UnmarshalStrict(text, &monitoring.PrometheusRule{})
	case "rules":
		_, errs := rulefmt.Parse(text, false, model.UTF8Validation)
		if len(errs) > 0 {
			return errs[0]
		}
		return nil
	case "expression":
		_, err := parser.ParseExpr(string(text))
		return err
	}
	return fmt.Errorf("no such kind: %s", kind)
}
