echo wellcome aboard > ~/banner
